"""One check per file. Each has ``SOURCES`` (what it reads; it runs only while all of them are known), ``check(snapshot, policy)``
yielding findings, and ``unproven(snapshot, policy, subject)``: why the absence of a finding proves nothing about ``subject`` in this
snapshot (empty: it is proof). An open episode closes on proof alone. Only known facts lead to a finding; silence never does.
"""
