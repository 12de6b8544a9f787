package main

import (
	"encoding/base64"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/bermedge/berm/userspace/certs"
)

type tlsECH struct {
	New  echNew  `cmd:"" help:"Make a key file."`
	Show echShow `cmd:"" help:"Print what of a key file belongs into DNS."`
}

// Help is what berm tls ech --help adds.
func (tlsECH) Help() string {
	return `With Encrypted Client Hello (RFC 9849), what everybody sees a client ask for is the public name; the name that it wants is encrypted with the key that it got from DNS. All edges of a service have the same key files, listed in the file's tls.ech: the one in DNS first. The edge needs a certificate for the public name.

To rotate: make a new file, list it first and reload, change DNS, and take the old one out once its record's time to live is over.

Examples:

  berm tls ech new public.example.com /etc/berm/ech.pem
  berm tls ech show /etc/berm/ech.pem`
}

type echNew struct {
	Name string `arg:"" help:"Public name: what everybody may see clients ask for."`
	File string `arg:"" complete:":files" help:"File to write, which must not exist."`
}

// Help is what berm tls ech new --help adds.
func (echNew) Help() string {
	return `The file holds the secret key: it is made with mode 0600, and bermd has to be able to read it (chgrp berm, chmod 640).

Examples:

  berm tls ech new public.example.com /etc/berm/ech.pem`
}

// echAnswer is berm tls ech --json.
type echAnswer struct {
	File       string   `json:"file"`
	PublicName []string `json:"public_names"`
	List       string   `json:"ech"` // the ECHConfigList, as the parameter ech of an HTTPS record has it
}

func (c *echNew) Run(a *app) error {
	text, err := certs.NewECH(c.Name)
	if err != nil {
		return badInput("%s", err)
	}
	f, err := os.OpenFile(c.File, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return badInput("%s exists already: a key that is in DNS is not to be overwritten", c.File)
	}
	if err != nil {
		return err
	}
	if _, err := f.Write(text); err != nil {
		return errors.Join(err, f.Close(), os.Remove(c.File))
	}
	if err := f.Close(); err != nil {
		return err
	}
	return a.showECH(c.File, text)
}

type echShow struct {
	File string `arg:"" complete:":files" help:"Key file."`
}

// Help is what berm tls ech show --help adds.
func (echShow) Help() string {
	return `Examples:

  berm tls ech show /etc/berm/ech.pem
  berm tls ech show /etc/berm/ech.pem --json | jq -r .ech`
}

func (c *echShow) Run(a *app) error {
	text, err := os.ReadFile(c.File)
	if errors.Is(err, fs.ErrNotExist) {
		return fail(exitAbsent, "Make one: berm tls ech new PUBLIC-NAME FILE.", "%s does not exist", c.File)
	}
	if err != nil {
		return err
	}
	return a.showECH(c.File, text)
}

func (a *app) showECH(path string, text []byte) error {
	keys, list, err := certs.ReadECH(text)
	if err != nil {
		return badInput("%s: %s", path, err)
	}
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	answer := echAnswer{File: path, List: base64.StdEncoding.EncodeToString(list)}
	for _, k := range keys {
		answer.PublicName = append(answer.PublicName, k.PublicName)
	}
	return a.out.Value(answer, func() {
		for _, k := range keys {
			a.out.Field("public", "%s (needs a certificate on the edge)", k.PublicName)
		}
		a.out.Field("file", "tls: {ech: [%s]}", answer.File)
		a.out.Field("dns", "1 . alpn=\"h3,h2\" ech=%q  (the HTTPS record of each name to hide)", answer.List)
	})
}
