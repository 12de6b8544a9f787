package tickets

// Load is what a tick of Watch does.
func (k *Keys) Load() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.load()
}
