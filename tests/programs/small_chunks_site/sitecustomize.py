"""In the PYTHONPATH of steps that a launcher starts by the program's own name: as ``small_chunks`` does, logits of a few
tokens at a time. Python imports it at its start."""

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec

CUT = "dpo_core.model.logprobs"


class _Cut(MetaPathFinder):
    """Changes the module once it is imported, and no sooner: most programs here never import it."""

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        if name != CUT:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def cut(module):
            execute(module)
            from tests.programs.small_chunks import cut_logits

            cut_logits()

        spec.loader.exec_module = cut  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Cut())
