"""Turn configs of other projects into ones of d2ext."""
