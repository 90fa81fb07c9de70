"""Does an architecture compute in a pack what it computes alone?"""
