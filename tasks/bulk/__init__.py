"""Certificates by the thousand: attendees → batch → jobs → zip and summary."""
