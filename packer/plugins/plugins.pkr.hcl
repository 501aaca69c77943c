# For Packer 1.7 and later, which brings no plugins: `packer init plugins` fetches them once, then the templates work as
# they are. It is a file of its own since Packer 1.6 refuses this block.
packer {
  required_plugins {
    amazon = {
      version = "~> 1.3"
      source  = "github.com/hashicorp/amazon"
    }
    ansible = {
      version = "~> 1.1"
      source  = "github.com/hashicorp/ansible"
    }
    azure = {
      version = "~> 2.1"
      source  = "github.com/hashicorp/azure"
    }
    googlecompute = {
      version = "~> 1.1"
      source  = "github.com/hashicorp/googlecompute"
    }
    qemu = {
      version = "~> 1.1"
      source  = "github.com/hashicorp/qemu"
    }
  }
}
