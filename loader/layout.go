package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/bermedge/berm/maps"
)

// contract names the directory of the pins.
const contract = maps.Contract

// layout is where things are pinned below one contract's directory. Maps lie in the directory
// itself, since readers open them by name; programs and links in folders of their own.
type layout struct{ dir string }

func layoutOf(root string) layout { return layout{maps.PinDir(root)} }

// pinned is the directory of the contract that is loaded, which only tests choose.
func (o Options) pinned() layout { return layout{filepath.Join(o.Pins, "v"+strconv.Itoa(o.contract))} }

// incoming is the directory that becomes l by one rename. What a killed loader left there is swept
// by the next one. (bpffs allows no dot in a name.)
func (l layout) incoming() layout { return layout{l.dir + newSuffix} }

func (l layout) programs() string           { return filepath.Join(l.dir, "programs") }
func (l layout) links() string              { return filepath.Join(l.dir, "links") }
func (l layout) mapPin(name string) string  { return filepath.Join(l.dir, name) }
func (l layout) program(name string) string { return filepath.Join(l.programs(), name) }
func (l layout) xdpLink(ifname string) string {
	return filepath.Join(l.links(), xdpLinkPrefix+escape(ifname))
}
func (l layout) sockOpsLink() string { return filepath.Join(l.links(), "sock_ops") }

const (
	mapPrefix     = "berm_"
	xdpLinkPrefix = "xdp_"
)

// Interfaces may have dots in their names (VLANs often do), pins may not.
var (
	escaper   = strings.NewReplacer("%", "%25", ".", "%2e")
	unescaper = strings.NewReplacer("%2e", ".", "%25", "%")
)

func escape(ifname string) string { return escaper.Replace(ifname) }

// linkNames lists the interfaces that have a pinned link.
func (l layout) linkNames() ([]string, error) {
	entries, err := os.ReadDir(l.links())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("links: %w", err)
	}
	var names []string
	for _, e := range entries {
		if esc, ok := strings.CutPrefix(e.Name(), xdpLinkPrefix); ok {
			names = append(names, unescaper.Replace(esc))
		}
	}
	return names, nil
}

// attached says whether links are pinned there, so that packets meet its programs.
func (l layout) attached() bool {
	entries, err := os.ReadDir(l.links())
	return err == nil && len(entries) > 0
}

// contracts lists the contract directories below root, half-made ones included.
func contracts(root string) ([]layout, error) {
	entries, err := os.ReadDir(root)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var dirs []layout
	for _, e := range entries {
		name, _ := cutNew(e.Name())
		n, err := strconv.Atoi(strings.TrimPrefix(name, "v"))
		if e.IsDir() && err == nil && name == "v"+strconv.Itoa(n) {
			dirs = append(dirs, layout{filepath.Join(root, e.Name())})
		}
	}
	return dirs, nil
}

const newSuffix = "_new"

func cutNew(path string) (string, bool) { return strings.CutSuffix(path, newSuffix) }

func hasMapPrefix(name string) bool { return strings.HasPrefix(name, mapPrefix) }

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
