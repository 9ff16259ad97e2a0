"""What people see: tables, pictures, progress, status, plan."""
