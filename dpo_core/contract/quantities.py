"""Quantities that several sections ask for, each with its bounds.

Every number of the settings has an upper bound. A run's parameters are kept by the server as JSON, and one whole number
beyond 64 bits in them makes its lists of runs answer with an error for good (Prefect issue 15031).
"""

from typing import Annotated, Literal

from pydantic import Field

Seed = Annotated[int, Field(ge=0, le=(1 << 32) - 1)]  # what NumPy's older generators take
Beta = Annotated[float, Field(gt=0, le=1e15)]
LearningRate = Annotated[float, Field(gt=0, le=1000)]
NumEpochs = Annotated[int, Field(ge=1, le=1_000_000)]
LengthTokens = Annotated[int, Field(ge=8, le=10_000_000)]
TokenBudget = Annotated[int, Field(ge=1, le=100_000_000)]
ForwardBudget = TokenBudget | Literal["auto"]
AUTO_ON_CPU = 2048
"""Tokens of a forward where ``auto`` is asked for and there is no card, whose memory would tell."""
ANSWERS_PER_BATCH = 16
"""Held-out prompts that are answered at a time, or as many as ``evaluation.tokens_per_batch`` allows."""
Count = Annotated[int, Field(ge=1, le=10_000_000)]
Whole = Annotated[int, Field(ge=-(1 << 53), le=1 << 53)]
Real = Annotated[float, Field(ge=-1e15, le=1e15)]
GiB = Annotated[float, Field(gt=0, le=1_000_000)]
Seconds = Annotated[int, Field(ge=1, le=315_360_000)]  # ten years
Stored = Annotated[int, Field(ge=0, le=(1 << 63) - 1)]
"""A count or id that another program tells, as JSON of ours may hold it."""
