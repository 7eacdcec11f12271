// TensorBoard's experimental messages to a plugin's iframe: here only that it has reloaded its data.

// Calls `reloaded` after each reload. Outside TensorBoard nobody answers, and nothing happens.
export function onReload(reloaded) {
  if (window.parent === window) return;
  const channel = new MessageChannel();
  channel.port1.onmessage = (event) => {
    let message;
    try {
      message = JSON.parse(event.data);
    } catch {
      return;
    }
    if (message.isReply) return;
    if (message.type === 'experimental.DataReloaded') reloaded();
    const reply = {type: message.type, id: message.id, payload: null, error: null, isReply: true};
    channel.port1.postMessage(JSON.stringify(reply));
  };
  window.parent.postMessage('experimental.bootstrap', '*', [channel.port2]);
}

// The window around the iframe, if it may be looked at; otherwise null.
export function parentWindow() {
  try {
    return window.parent !== window && window.parent.document ? window.parent : null;
  } catch {
    return null;
  }
}

// Keeps <html data-theme> like TensorBoard's own; without it CSS follows the system's preference.
export function followTheme(changed) {
  const body = parentWindow()?.document.body;
  const inTensorBoard = body && parentWindow().document.querySelector('tb-webapp');
  const read = () => {
    const dark = body?.classList.contains('dark-mode') || (!inTensorBoard && preference.matches);
    document.documentElement.dataset.theme = dark ? 'dark' : 'light';
    changed();
  };
  const preference = window.matchMedia('(prefers-color-scheme: dark)');
  preference.addEventListener('change', read);
  if (body) new MutationObserver(read).observe(body, {attributes: true, attributeFilter: ['class']});
  read();
}
