"""The drill: real runs are killed, frozen and damaged, and must end as if nothing had happened."""
