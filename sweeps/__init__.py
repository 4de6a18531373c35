"""From a spec to jobs: decode, expand, plan, reconcile; and the command line on top."""
