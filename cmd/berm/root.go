package main

import (
	"context"
	"os"
	"strings"
	"time"

	"github.com/alecthomas/kong"
)

const description = `Operate a Berm edge: load its kernel half, see what it does, change it while it runs.

Changes go to the daemon (bermd) through its admin socket. While it is down, root and the group berm change the kernel half's pinned maps directly; every command says which way it took.`

// groups order the commands in --help.
var groups = []kong.Group{
	{Key: "see", Title: "See what the edge does:"},
	{Key: "change", Title: "Change what it does:"},
	{Key: "run", Title: "Run it:"},
	{Key: "more", Title: "More:"},
	{Key: "global", Title: "Flags of every command:"},
}

// root is the command line.
type root struct {
	JSON    bool   `group:"global" help:"Machine-readable output, with stable names; errors too (on stderr)."`
	Socket  string `group:"global" placeholder:"PATH" env:"BERM_SOCKET" complete:":files" help:"Admin socket of bermd (default: the configuration's, else /run/berm/berm.sock)."`
	Config  string `group:"global" placeholder:"PATH" env:"BERM_CONFIG" complete:":files" help:"Configuration file (default: /etc/berm/berm.yaml)."`
	Pins    string `group:"global" placeholder:"DIR" env:"BERM_PINS" complete:":dirs" help:"Where the kernel half is pinned (default: the configuration's, else /sys/fs/bpf/berm)."`
	NoColor bool   `group:"global" help:"No colours; so does the environment variable NO_COLOR."`

	Status   statusCmd   `cmd:"" group:"see" help:"Show the state of the edge: daemon, kernel half, VIPs, backends, origins, cache."`
	Top      topCmd      `cmd:"" group:"see" help:"Watch sources, VIPs, drops and the cache live."`
	Drops    dropsCmd    `cmd:"" group:"see" help:"Count refused packets by reason."`
	FEC      fecCmd      `cmd:"" name:"fec" group:"see" help:"Forward error correction: relays, live streams, and what parity is worth."`
	Steer    steerCmd    `cmd:"" group:"see" help:"Explain which edge a flow goes to."`
	Why      whyCmd      `cmd:"" group:"see" help:"Explain what becomes of a packet, stage by stage."`
	Diagnose diagnoseCmd `cmd:"" group:"see" help:"Split the time of a client's requests into network, edge and origin."`
	Pcap     pcapCmd     `cmd:"" group:"see" help:"Copy packets into a file, by stage, reason and VIP."`
	Doctor   doctorCmd   `cmd:"" group:"see" help:"Find known causes of trouble on this host, and the command that mends each."`

	VIP     vipCmd     `cmd:"" name:"vip" group:"change" help:"Services: address, port, protocol, and the policies of each."`
	Geo     geoCmd     `cmd:"" group:"change" help:"Countries: databases, policies, and what is known about an address."`
	Rate    rateCmd    `cmd:"" group:"change" help:"Classes of limits for one source."`
	CC      ccCmd      `cmd:"" name:"cc" group:"change" help:"Congestion control: what TCP connections begin with, by prefix and country."`
	Verdict verdictCmd `cmd:"" group:"change" help:"Time-limited decisions about one source."`
	Shadow  shadowCmd  `cmd:"" group:"change" help:"Rules that are only counted: what they would drop, and promoting them."`
	Purge   purgeCmd   `cmd:"" group:"change" help:"Make the cache forget objects."`
	Anycast anycastCmd `cmd:"" group:"change" help:"What routers are told of this edge."`

	Kernel  kernelCmd  `cmd:"" group:"run" help:"Load, upgrade and remove the kernel half."`
	TLS     tlsCmd     `cmd:"" name:"tls" group:"run" help:"Audit what TLS offers; make keys of ECH."`
	Conf    confCmd    `cmd:"" name:"config" group:"run" help:"Check the configuration file."`
	Reload  reloadCmd  `cmd:"" group:"run" help:"Make bermd read its configuration again."`
	Upgrade upgradeCmd `cmd:"" group:"run" help:"Make bermd hand over to the program that is installed now."`

	Replay     replayCmd     `cmd:"" group:"more" help:"Compare what a new configuration would do with recorded packets."`
	Bench      benchCmd      `cmd:"" group:"more" help:"Measure the kernel half on this machine."`
	Completion completionCmd `cmd:"" group:"more" help:"Print a completion script for a shell."`
	Man        manCmd        `cmd:"" group:"more" help:"Write the manual pages into a directory."`
	Version    versionCmd    `cmd:"" group:"more" help:"Print the version."`
}

// Help is what berm --help adds.
func (root) Help() string {
	return `Exit codes: 0 done, 1 failed, 2 usage or bad input, 3 not running, not loaded or not found, 4 not permitted.

Examples:

  berm status
  berm top
  berm vip add web 192.0.2.10:443 --geo default --rate default
  berm verdict add 198.51.100.7 --for 10m --reason scraper
  berm drops --watch`
}

// names lists what exists, for completion; a shell waits for it, so it gives up soon.
func (r *root) names(ctx context.Context, words []string, kind string) []string {
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	// The parser, which would read these, has not seen an unfinished command line.
	r.Socket, r.Pins, r.Config = os.Getenv("BERM_SOCKET"), os.Getenv("BERM_PINS"), os.Getenv("BERM_CONFIG")
	for i, w := range words { // the flags of an unfinished command line
		name, value, given := strings.Cut(w, "=")
		if !given && i+1 < len(words) {
			value = words[i+1]
		}
		switch name {
		case "--socket":
			r.Socket = value
		case "--pins":
			r.Pins = value
		case "--config":
			r.Config = value
		}
	}
	a := newApp(ctx, r, nil, nil, nil)
	defer a.close()
	return a.names(kind)
}
