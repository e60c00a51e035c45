"""Constraints on the deployed model: how it is sized, trained and deployed, and the certificate that it keeps them.

To add an approach of task C, for example `Fractions`:

1. Write the class in its own file, `approaches/fractions.py`, derived from `Approach` (`approaches/approach.py`): `name`, and
   the methods that differ from rounding to the nearest power of two after each epoch. `project` gives the deployed weights,
   `on_grid` recognises them, and `coding` packs them.
2. Describe it in `conf/c_approach/fractions.yaml`: `_target_` and its arguments.
3. Add the class to "c_approach" in `speech_exp/registry.py`, in one line.

To add a task, derive a class from `Task` (`task.py`) with a `Sizing`, phases of training with their `Hooks`, and a
`Deployment`; describe it in `conf/task/`, and add it to "task" in the registry. `budget.py` is a short example.
`tests/test_extending.py` follows the steps for an approach.
"""
