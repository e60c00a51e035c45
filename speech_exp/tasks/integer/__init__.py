"""Integer-only inference: compact classifiers from quantised features to logits, other networks in their recurrent layers."""
