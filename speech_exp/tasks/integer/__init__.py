"""Integer-only inference of the compact models: only integers between the quantised features and the logits."""
