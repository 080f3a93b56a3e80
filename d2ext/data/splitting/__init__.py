"""Split images into training and validation: stratified, by group, without near-duplicates."""
