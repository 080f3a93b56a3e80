"""Standard datasets: copied, downloaded, checked."""
