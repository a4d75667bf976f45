"""DPO training as a standalone library and program: ``accelerate launch -m dpo_core <step> --job job.json``.

Importing this package never imports torch: the contract modules (``config``, ``jobs``, ``results``, ``errors``, ``store``,
``progress``) are shared with the orchestrator, which has no torch.
"""
