"""Integer-only inference: of compact classifiers from the quantised features to the logits, otherwise of recurrent layers."""
