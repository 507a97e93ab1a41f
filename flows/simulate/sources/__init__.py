"""The ports of :mod:`flows.domain.ports` over the simulated world: what ``flows.clients`` is over the real one, errors and retries alike."""
