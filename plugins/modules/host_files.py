#!/usr/bin/python
# MIT licence (see LICENSE)
"""Ansible module: all files of a role on a host. The action plugin of this name does the controller's part."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_files
author: the modelhost authors
short_description: Write all files of a role in one task
description:
  - Takes the whole set of files that a role has on a host (folders, rendered templates, copies, links, generated
    secrets, and what must be absent) and brings the host to it in one round trip.
  - Everything is checked before anything is changed. Problems of all files are told together.
  - Each file is written beside its place, checked by its validator, and then renamed. So a file is whole or it is the
    old one, whenever the run or the host stops. It has its owner and mode before it has its name. What an interrupted
    run left is removed by the next one.
  - A file whose content is right keeps its modification time, so that M(modelhost.serving.unit_running) restarts only
    what has to be.
  - Two runs at once on one host wait for each other.
options:
  files:
    description:
      - The set. Each path stands in it once.
      - An entry with neither O(files[].src), O(files[].content), O(files[].generate) nor O(files[].link) has its source
        found by its path. C(/etc/app/app.conf) comes from C(templates/etc/app/app.conf.j2) of the role, or from the
        file or folder C(files/etc/app/app.conf).
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Where it lies on the host.
        type: path
        required: true
      each:
        description: >-
          Take this entry once for each element of this list. In O(files[].path), O(files[].src), O(files[].content),
          O(files[].link) and O(files[].owner), C({name}) stands for the value of that name in an element that is a
          dictionary, and C({item}) for an element that is not. A template has the element as C(item).
        type: list
        elements: raw
      state:
        description: V(absent) removes a file, a link, or a folder with all that is in it. A mount point is refused.
        type: str
        choices: [present, directory, absent]
        default: present
      create:
        description: V(false) leaves alone what is not there.
        type: bool
        default: true
      src:
        description: Another source, below C(templates/) of the role (a name that ends in C(.j2)) or below C(files/),
          or an absolute path on the controller.
        type: str
      vars:
        description: Variables for the template, beside those of the host.
        type: dict
      content:
        description: The text of the file.
        type: str
      generate:
        description: >-
          A file that holds one secret, which the host makes and nobody sees. C({}) in this text stands for the secret.
          A file that is there and not empty is kept.
        type: str
      link:
        description: Target of a symbolic link. It need not be there. A link may take the place of a link only.
        type: str
      secret:
        description: Never show what is in the file. Its default mode is then V(0600).
        type: bool
        default: false
      owner:
        description: Account. Default is V(root) where this runs as root.
        type: str
      group:
        description: Group. Default is V(root) where this runs as root.
        type: str
      mode:
        description: Octal mode, as text. Default is V(0644), V(0755) for folders, V(0600) for secrets.
        type: str
      directory_mode:
        description: Octal mode of the folders of a copied folder.
        type: str
        default: "0755"
      keep:
        description: Leave owner and mode of a folder that is there as they are. Only with O(files[].state=directory).
        type: bool
        default: false
      prune:
        description: >-
          In a folder, or in a copied folder and all folders below it, remove what this pattern fits and the set does
          not name.
        type: str
      validate:
        description: Command that judges the new file before it takes its place. C(%s) stands for the new file.
        type: str
  derive:
    description: >-
      What programs make from files. Once all files are in place, a command runs if what it makes is missing, or older
      than what it is made from. It is judged by the files' times, so that an interrupted run forgets nothing.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: What the command makes, a file or a folder.
        type: path
        required: true
      of:
        description: Files and folders that it is made from. Of a folder, the files that lie directly in it count too.
          Where none is there, nothing is made.
        type: list
        elements: path
        required: true
      command:
        description: The command, without a shell.
        type: str
        required: true
  look:
    description: Paths of which RV(there) shall say whether they are there, so that no other task has to ask the host.
    type: list
    elements: path
    default: []
notes:
  - Folders above a folder of the set are made where they are missing. A file needs a folder that is there or named.
  - Links in the way of a path are followed if they belong to root. Folders of other accounts are refused as a place for
    root's files, because their owner could lead root elsewhere.
  - In check mode, accounts and folders that are not there yet are taken as made by the tasks before.
  - Needs Python 3.8 on the host.
"""

EXAMPLES = r"""
- name: Write the files of the application
  modelhost.serving.host_files:
    files:
      - {path: /etc/app, state: directory, group: app, mode: "0750"}
      - {path: /etc/app/app.conf, group: app, mode: "0640", validate: app --check %s}
      - {path: /etc/app/master.env, generate: "MASTER_KEY=sk-{}"}
      - {path: "/etc/app/keys/{name}", each: "{{ app_users }}", generate: "{}"}
      - {path: /etc/app/token, content: "{{ app_token }}", secret: true}
      - {path: /opt/app/lib/app, prune: "*"}
      - {path: /opt/app/current, link: "/opt/app/releases/{{ app_version }}"}
      - {path: /opt/app/lib/old.py, state: absent}

- name: Give the program its words
  modelhost.serving.host_files:
    files:
      - {path: /etc/app/words, state: directory, prune: "*.txt"}
      - {path: "/etc/app/words/{item}.txt", each: "{{ app_words }}"}
    derive:
      - {path: /var/lib/app/words.db, of: [/etc/app/words], command: app --index /etc/app/words}
"""

RETURN = r"""
changes:
  description: What was changed, or would be.
  returned: always
  type: list
  elements: dict
  contains:
    path:
      description: The file.
      type: str
    what:
      description: Any of C(created), C(content), C(target), C(owner), C(group), C(mode), C(removed), C(derived).
      type: list
      elements: str
there:
  description: Those of O(look) that were there before anything was changed; links count by themselves.
  returned: always
  type: list
  elements: path
"""
