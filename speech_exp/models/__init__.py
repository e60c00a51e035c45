"""Recurrent layers, and the encoders that stack them.

To add a recurrent layer, for example `Elman`:

1. Write the class in its own file here, `elman.py`, derived from `RecurrentLayer` (`layer.py`): `name`, the sequence form
   `forward`, and the streaming form `initial_state` and `step`. Sizes and bytes are counted from its parameters and
   buffers. Numbers that users may set are arguments, annotated with their bounds (`speech_exp.bounds`).
2. Describe it in `conf/model/elman.yaml`: `_target_`, `hidden_size`, `bidirectional`, and its other arguments.
3. Add the class to "model" in `speech_exp/registry.py`, in one line.

Then `model=elman` works with every data set and encoder, and with the tasks A, B1 and C. If an encoder should have another
default size, let the YAML refer to `${sizes.elman.hidden_size}` and add a line `elman:` under `sizes` in each
`conf/encoder/*.yaml`. Task B2 needs the layer's arithmetic in integers too: see `speech_exp/tasks/integer/form.py`.
`tests/test_extending.py` follows these steps.
"""
