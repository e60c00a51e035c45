"""Corpora whose audio stays on disk: tables of utterances, readers, shards and batches."""
