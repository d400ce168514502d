"""The command `baton`: starts the parts of a cluster, changes its pools, asks it for answers, tells what is wrong."""
