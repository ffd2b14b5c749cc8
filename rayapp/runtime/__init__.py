"""What every verb that runs on Ray needs: the cluster, its room, its price, its progress line, decoding on it."""
