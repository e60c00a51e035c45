"""GigaSpeech: its release, download and transcripts."""
