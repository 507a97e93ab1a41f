"""The simulator: the real sweep, runs, store and schema in virtual time, against a world made of values. ``zlh simulate`` runs it.

::

    plan (seed → faults) ──▶ world (the truth) ◀──wire── sources (the ports) ◀── controllers: sweeps, runs, dispatchers
                               │                                                   │ the product's own code
                               └────────────▶ invariants ◀── commits ── database ◀─┘

A program beside the product, like :mod:`flows.lab`: nothing of the product knows it. One run is one process of the machine: it has its own
event loop whose time jumps (:mod:`flows.simulate.loop`), simulated processes that can die or stand still at any ``await``, and one database
file in memory. The same seed gives the same trace, whatever ``PYTHONHASHSEED`` says.
"""
