package main

import (
	"net/url"

	"github.com/bermedge/berm/userspace/control"
)

type purgeCmd struct {
	URLs []string `arg:"" name:"url" help:"Objects to forget, with scheme and host as clients ask for them."`
}

// Help is what berm purge --help adds.
func (purgeCmd) Help() string {
	return `All variants of an object go. The next request fetches it from the origin. This edge's cache is meant; others keep theirs.

Examples:

  berm purge https://www.example.com/style.css
  berm purge http://www.example.com/a http://www.example.com/b`
}

func (c *purgeCmd) Run(a *app) error {
	for _, u := range c.URLs {
		p, err := url.Parse(u)
		if err != nil || p.Host == "" || p.Scheme != "http" && p.Scheme != "https" {
			return badInput("purge %q: want a whole URL, such as https://www.example.com/style.css", u)
		}
	}
	d, err := a.needDaemon("purge", "the cache lives in the daemon, and a stopped one has none")
	if err != nil {
		return err
	}
	var all control.Changes
	for _, u := range c.URLs {
		ch, err := d.Purge(a.ctx, control.Purge{URL: u})
		if err != nil {
			return err
		}
		all.Changed = append(all.Changed, ch.Changed...)
	}
	return a.tell(all, byDaemon)
}

type reloadCmd struct{}

// Help is what berm reload --help adds.
func (reloadCmd) Help() string {
	return `All of the file takes effect, or nothing: a bad one leaves the running configuration in force and is told with line and column. Check first with berm config check.

Examples:

  berm config check && berm reload`
}

func (c *reloadCmd) Run(a *app) error {
	d, err := a.needDaemon("reload", "a daemon reads its configuration when it starts")
	if err != nil {
		return err
	}
	ch, err := d.Reload(a.ctx)
	if err != nil {
		return err
	}
	return a.tell(ch, byDaemon)
}
