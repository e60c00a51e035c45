"""Ways of training towards power-of-two weights, one strategy object each (task C)."""
