"""Integer-only inference: of compact classifiers between the quantised features and the logits, else of recurrent layers."""
