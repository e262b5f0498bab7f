"""Names and contracts that cross the borders between sigline's parts."""
