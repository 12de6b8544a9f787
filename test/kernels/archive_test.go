package kernels

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// mustArchive packs programs and the kernel's modules as the kernel wants its first file
// system: a cpio archive of the "newc" kind (Documentation/driver-api/early-userspace/buffer-format.rst).
func mustArchive(t *testing.T, kernel string, programs ...string) []byte {
	t.Helper()
	var a archive
	a.add("dev", 0o040755, nil)
	a.add("modules", 0o040755, nil)
	modules, err := filepath.Glob(filepath.Join(kernel, "modules", "*.ko"))
	if err != nil {
		t.Fatal(err)
	}
	add := func(path, folder string) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		a.add(folder+filepath.Base(path), 0o100755, data)
	}
	for _, p := range programs {
		add(p, "")
	}
	for _, m := range modules {
		add(m, "modules/")
	}
	a.add("TRAILER!!!", 0, nil)
	return a.Bytes()
}

type archive struct {
	bytes.Buffer
	inode int
}

func (a *archive) add(name string, mode int, data []byte) {
	a.inode++
	// magic, inode, mode, uid, gid, links, mtime, size, 4 device numbers, length of name, checksum
	fmt.Fprintf(a, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		a.inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	a.WriteString(name + "\x00")
	a.pad()
	a.Write(data)
	a.pad()
}

func (a *archive) pad() {
	for a.Len()%4 != 0 {
		a.WriteByte(0)
	}
}
