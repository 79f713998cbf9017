"""Starting the processes of a cluster: one module per way (MPI, SSH, this machine).

A launcher only starts processes and tells them where the scheduler is. All traffic after that is
between the processes themselves.
"""
