package rig

// ReflectXDP sends back every frame that a device receives.
func ReflectXDP(n *Node, dev string) error { return n.attachReturn(dev, xdpTX) }
