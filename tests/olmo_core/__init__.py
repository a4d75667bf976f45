"""``train.implementation: olmo_core``, with OLMo-core itself (`make setup EXTRAS=olmo`)."""
