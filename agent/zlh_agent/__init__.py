"""The agent: looks after the workload of one container and answers the control plane.

    __main__ → config, listener              what it is told: /etc/zlh/agent.toml; the parts wired, the port opened
    routes   → supervisor → prepared, unit   a request becomes a job, a job moves the game's systemd unit
               supervisor → starting, ending how it comes to serve, and how it is brought to its end
               supervisor → ping, crash      what decides that it serves, and why it died
               supervisor → record, jobs     what must outlive the agent itself
    routes   → provisioned                   what the container's kind needs and does not have
    routes   → bearer, fence                 who may ask, and who is no longer in charge

The game is a unit of its own: the agent may end at any instruction, and its successor takes the game up where it finds it. Nothing here is
imported by the control plane, and the other way round: the two meet on the wire.
"""

__version__ = "0.1.0"
