"""What bounds SQL that strangers write: permission, time, threads and memory of each query."""
