"""Steps of tests without 8 s of imports each: real processes, forked by one that has imported everything already.

``sitecustomize`` (a copy of ``site/`` stands on PYTHONPATH) hands every ``python -m accelerate.commands.launch`` and every
``python -m dpo_core`` that a test, a flow or a worker starts over to ``server``. What runs is the same code with the same
arguments, environment, folder and open files; signals, exit codes and deaths pass both ways. What does not run is the
interpreter's own start, so a test whose point is the start itself asks for ``cold_steps`` (tests/conftest.py).
"""
