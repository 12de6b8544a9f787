package main

import (
	"cmp"
	"errors"
	"io/fs"
	"os"

	"github.com/bermedge/berm/loader"
	"github.com/bermedge/berm/userspace/config"
)

// settings are where things are: flags first, then the configuration, then the defaults.
type settings struct {
	socket string
	pins   string
	config string
}

// settings reads the configuration once. A command that only looks for socket and pins goes on
// without it: an edge must stay operable while its file is being mended.
func (a *app) settings() settings {
	if a.where != nil {
		return *a.where
	}
	path := cmp.Or(a.root.Config, config.DefaultPath)
	c := config.Default()
	if r := a.root; r.Socket == "" || r.Pins == "" {
		loaded, err := config.Load(path)
		switch {
		case err == nil:
			c = *loaded
		case exists(path) && readable(path):
			a.note("%s has mistakes (berm config check): looking for bermd and the pins at their usual places", path)
		}
	}
	a.where = &settings{
		socket: cmp.Or(a.root.Socket, c.Admin.Socket),
		pins:   cmp.Or(a.root.Pins, c.Kernel.Pins),
		config: path,
	}
	return *a.where
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

func readable(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	_ = f.Close()
	return true
}

// configuration is strict where settings are not: what cannot be read must not be guessed. No
// file means the defaults, unless a flag named it.
func (a *app) configuration() (*config.Config, error) {
	path := cmp.Or(a.root.Config, config.DefaultPath)
	if a.root.Config == "" && !exists(path) {
		c := config.Default()
		return &c, nil
	}
	c, err := config.Load(path)
	if err != nil {
		return nil, fail(exitUsage, "Mend the configuration first (berm config check), or name another with --config.", "%w", err)
	}
	return c, nil
}

// kernelOptions are how the configuration wants the kernel half.
func (a *app) kernelOptions() (loader.Options, error) {
	c, err := a.configuration()
	if err != nil {
		return loader.Options{}, err
	}
	k := c.Kernel
	return loader.Options{
		Interfaces: k.Interfaces, Mode: loader.Mode(k.Mode), Pins: cmp.Or(a.root.Pins, k.Pins), Cgroup: k.Cgroup,
		Group: k.Group, RateCells: k.RateCells, ObserveOnly: k.ObserveOnly, Self4: c.Node.Address4, Self6: c.Node.Address6,
	}, nil
}
