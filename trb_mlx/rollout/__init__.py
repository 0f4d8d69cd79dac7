"""Drawing rollouts: behavior policies, caches and the token-by-token sampler."""
