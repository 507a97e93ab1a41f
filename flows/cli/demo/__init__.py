"""``zlh demo``: the whole system on the simulated fleet, broken on purpose and watched while it mends itself.

``stage`` is what the acts stand on (processes, front door, lab, evidence), ``provisioning`` and ``faults`` are the acts, ``report`` the
verdict. Every figure is read from where a person would look: the database, the proxy, DNS, and what Discord received.
"""
