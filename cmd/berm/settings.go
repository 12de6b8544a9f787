package main

import (
	"cmp"

	"github.com/bermedge/berm/loader"
	"github.com/bermedge/berm/userspace/control"
)

// settings are where things are: flags first, then the configuration, then the defaults.
type settings struct {
	socket string
	pins   string
	config string
}

const (
	defaultConfig = "/etc/berm/berm.yaml"
	defaultPins   = "/sys/fs/bpf/berm"
)

func (a *app) settings() settings {
	return settings{
		socket: cmp.Or(a.root.Socket, control.DefaultSocket),
		pins:   cmp.Or(a.root.Pins, defaultPins),
		config: cmp.Or(a.root.Config, defaultConfig),
	}
}

// kernelOptions are how the configuration wants the kernel half.
func (a *app) kernelOptions() (loader.Options, error) {
	return loader.Options{Pins: a.settings().pins}, nil
}
