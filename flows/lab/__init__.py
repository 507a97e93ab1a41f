"""The lab: the whole fleet on one Linux machine, without Proxmox. A program of its own, reached over the network alone.

::

    python -m flows.lab            world ─┬─ proxmox    HTTPS face, tasks, rights, literal errors
                                          ├─ agents     one listener per container, on the container's own address
                                          ├─ bridge     the Velocity plugin's HTTP face
                                          ├─ dns        authoritative: UPDATE, AXFR, TSIG
                                          ├─ discord    webhook receiver with Discord's limits
                                          ├─ artifacts  catalog and files
                                          ├─ runner     stands in for Ansible, checks variables against argument specs
                                          └─ control    faults on demand, inspection

It imports nothing of the product but ``domain``, ``errors`` and ``settings``; no client knows that it talks to a lab.
"""
