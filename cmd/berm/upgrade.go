package main

type upgradeCmd struct{}

// Help is what berm upgrade --help adds.
func (upgradeCmd) Help() string {
	return `Starts the bermd that is installed now beside the one that runs. Once it has read the configuration and serves, new connections are its own; the other one keeps those that it has, over TCP and QUIC, until they end or listen.drain has passed. No client is refused, and no request in flight is cut within that time.

A bermd that fails to start changes nothing: the running one goes on, and the error says why. The cache begins empty. Routers that bermd itself speaks BGP with find this edge again after a moment. It needs the kernel half, and a bermd that systemd started.

The kernel half is upgraded by itself: berm kernel upgrade.

Examples:

  apt-get install --only-upgrade berm && berm kernel upgrade && berm upgrade
  berm status`
}

func (c *upgradeCmd) Run(a *app) error {
	d, err := a.needDaemon("upgrade", "the next start is of the program that is installed then")
	if err != nil {
		return err
	}
	ch, err := d.Upgrade(a.ctx)
	if err != nil {
		return err
	}
	return a.tell(ch, byDaemon)
}
