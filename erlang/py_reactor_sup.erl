%%% The top of the supervision tree. Whatever comes later needs what comes first.
-module(py_reactor_sup).

-behaviour(supervisor).

%% API
-export([start_link/1]).

%% supervisor callbacks
-export([init/1]).

-spec start_link(py_reactor_settings:settings()) -> supervisor:startlink_ret().
start_link(Settings) ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, Settings).

%% @private
-spec init(py_reactor_settings:settings()) ->
    {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init(Settings) ->
    {ok, {#{strategy => rest_for_one}, [
        #{id => py_reactor_log, start => {py_reactor_log, start_link, []}},
        #{id => py_reactor_python, start => {py_reactor_python, start_link, [Settings]}}
    ]}}.
