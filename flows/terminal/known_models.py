"""Shapes of the models that the shipped recipes name, so that a plan needs no network. From their config.json, or as below;
a checkpoint that is here is measured itself.

    Llama 3.1   "The Llama 3 Herd of Models" (arXiv 2407.21783), table 3; Tulu 3 adds a pad token and rounds up to 8
    OLMo 2      "2 OLMo 2 Furious" (arXiv 2501.00656), table 3; the vocabulary is padded to 100,352
    Olmo 3      OLMo-core, TransformerConfig.olmo3_7B and olmo3_32B; "Olmo 3" (arXiv 2512.13961); vocabulary 100,278
"""

from dpo_core.contract.model_shape import ModelShape

TULU3_8B = ModelShape(32, 4096, 14336, 4096, 1024, 128_264)
TULU3_70B = ModelShape(80, 8192, 28672, 8192, 1024, 128_264)
OLMO2_7B = ModelShape(32, 4096, 11008, 4096, 4096, 100_352, norms_queries=True)
OLMO2_13B = ModelShape(40, 5120, 13824, 5120, 5120, 100_352, norms_queries=True)
OLMO3_7B = ModelShape(32, 4096, 11008, 4096, 4096, 100_278, norms_queries=True)
OLMO3_32B = ModelShape(64, 5120, 27648, 5120, 1024, 100_278, norms_queries=True)

KNOWN = {
    "allenai/Llama-3.1-Tulu-3-8B-SFT": TULU3_8B,
    "allenai/Llama-3.1-Tulu-3-70B-SFT": TULU3_70B,
    "allenai/OLMo-2-1124-7B-SFT": OLMO2_7B,
    "allenai/OLMo-2-1124-13B-SFT": OLMO2_13B,
    "allenai/Olmo-3-7B-Instruct-SFT": OLMO3_7B,
    "allenai/Olmo-3-7B-Think-SFT": OLMO3_7B,
    "allenai/Olmo-3-32B-Think-SFT": OLMO3_32B,
}
