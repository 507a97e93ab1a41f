"""The control plane of zlh-autopilot.

::

    settings ──▶ bootstrap ──▶ clients, state
                                   │
      ┌────────────────────────────┴───────────────────────────┐
      ▼                                                        │
    observe ──▶ Snapshot ──▶ decide ──▶ Plan ──▶ act ──▶ Outcomes ──▶ report
    (I/O, bulk)  (frozen)     (pure)    (data)   (intent → effect → outcome, each recorded)

Imports point down: ``flows.*`` (the flow files), ``cli``, ``api`` → ``bootstrap`` →
``observe``, ``decide``, ``act``, ``report`` → ``clients``, ``state`` → ``settings``, ``domain``, ``errors``.
``decide`` imports ``domain`` alone. ``lab`` is another program that imports nothing above ``settings``.
"""
