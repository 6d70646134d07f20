"""An example plug-in of policysmith: a backbone, a head and a simulator."""
