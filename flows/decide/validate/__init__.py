"""Rules of ``zlh validate``: pure, from frozen records to problems. ``database`` (M1), ``containers`` (M1 against Proxmox), ``topology`` (M3)."""
