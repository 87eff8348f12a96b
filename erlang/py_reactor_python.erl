%%% Starts Python and the threads for calls; stops the calls when the application stops. Meanwhile it
%%% relays Python's messages to processes on other nodes.
%%%
%%% Python itself never ends: when the application starts again it finds the one that runs, with its
%%% modules and what they hold.
-module(py_reactor_python).

-behaviour(gen_server).

-include_lib("kernel/include/logger.hrl").

%% API
-export([start_link/1]).

%% gen_server callbacks
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

-spec start_link(py_reactor_settings:settings()) -> gen_server:start_ret().
start_link(Settings) ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, Settings, []).

%% @private
-spec init(py_reactor_settings:settings()) -> {ok, no_state} | {stop, {python, binary()}}.
init(#{call_threads := CallThreads} = Settings) ->
    process_flag(trap_exit, true),
    %% The VM ignores the signal, and then the exit codes of Python's own subprocesses are lost.
    ok = os:set_signal(sigchld, default),
    maybe_start([
        fun() -> start_python(Settings) end,
        fun() -> py_nif:start_calls(CallThreads) end
    ]).

%% @private
-spec handle_call(term(), gen_server:from(), no_state) -> {reply, {error, unknown_call}, no_state}.
handle_call(Call, _From, State) ->
    ?LOG_WARNING(#{what => unexpected_call, process => ?MODULE, call => Call}),
    {reply, {error, unknown_call}, State}.

%% @private
-spec handle_cast(term(), no_state) -> {noreply, no_state}.
handle_cast(Cast, State) ->
    ?LOG_WARNING(#{what => unexpected_cast, process => ?MODULE, cast => Cast}),
    {noreply, State}.

%% @private
-spec handle_info(term(), no_state) -> {noreply, no_state}.
handle_info({py_relay, Pid, Message}, State) ->
    %% erlang.send to a process on another node, which native code cannot reach.
    Pid ! Message,
    {noreply, State};
handle_info(Message, State) ->
    ?LOG_WARNING(#{what => unexpected_message, process => ?MODULE, message => Message}),
    {noreply, State}.

%% @private
-spec terminate(term(), no_state) -> ok.
terminate(_Reason, _State) ->
    py_nif:stop_calls().

%%--------------------------------------------------------------------------------------------------

maybe_start([]) ->
    {ok, no_state};
maybe_start([Step | Steps]) ->
    case Step() of
        ok -> maybe_start(Steps);
        {error, Explanation} -> {stop, {python, Explanation}}
    end.

start_python(#{python_path := Path, log_level := Level} = Settings) ->
    py_nif:start_python(
        program(Settings),
        path(filename:join(code:priv_dir(py_reactor), "python")),
        [path(Folder) || Folder <- Path],
        string:uppercase(atom_to_binary(Level))
    ).

program(#{python := Setting}) ->
    Environment = [os:getenv("PY_REACTOR_PYTHON"), Setting, os:getenv("VIRTUAL_ENV")],
    case [Program || Program <- Environment, Program =/= false, Program =/= undefined, Program =/= ""] of
        [Program | _] -> unicode:characters_to_binary(Program);
        [] -> <<>>
    end.

path(Folder) ->
    unicode:characters_to_binary(filename:absname(Folder)).
