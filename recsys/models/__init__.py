"""What scores items for users: functions from sparse matrices to arrays, and what is asked of them. No file is read."""
