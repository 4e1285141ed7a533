"""Jobs on a cluster: submitting, starting, requeueing, listing and cancelling them."""
